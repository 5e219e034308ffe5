"""DeepMT-DR: joint learning of multi-level tasks for diabetic retinopathy grading (Wang et al.), as stages and losses.

Stage 1 trains super-resolution and lesion segmentation; stage 2 grades high-resolution images with the lesion maps of
stage 1; stage 3 trains all nets together, in which the maps of segmentation and grading guide super-resolution. A
stage whose nets an ablation removes is left out.

Files: ``plan`` (stages and what each depends on), ``method`` (one stage's networks, losses and rows), ``graph`` (its
forward passes), ``frozen_maps`` (what is computed once), ``measures`` (what validation and test report).

Paper map (equation -> function -> tests)
    Eq. 1           models.deepmt.segmentation           tests/unit/test_deepmt_models.py
    Eqs. 2, 3       explain.gmsv.Gmsv                    tests/papers/test_gmsv.py
    Algorithm 1     explain.gmsv                         tests/papers/test_gmsv.py
    Eqs. 4 to 7     losses.deepmt                        tests/papers/test_deepmt_equations.py
    Eqs. 8, 9       losses.segmentation                  tests/papers/test_deepmt_segmentation_equations.py
    Eq. 10          losses.deepmt                        tests/papers/test_deepmt_equations.py
    Eq. 11          losses.deepmt.super_resolution_loss, methods.deepmt.method   tests/unit/test_deepmt_method.py

Deviation register (what the paper prints -> what happens here; why; switch)
    Eq. 1 adds five maps, whose weights are not given; the code adds four, with 0.4, 0.2, 0.2, 1.0, and leaves out the
        one of full resolution -> 0.4, 0.2, 0.2, 0.2 and 1.0 for the full resolution, without which microaneurysms are
        lost; the code's is method.segmentation.gamma=[0.4,0.2,0.2,1,0]. Its softmax is over four lesions, the code's
        over these and the background -> the code's, or each pixel would show some lesion.
    Eq. 2 thresholds features and overlaps -> sigmoids; hard thresholds pass no gradient, so xi could not learn;
        method.evidence.step=hard. Features are compared on the scale of their own maximum, so that one xi fits. The
        code selects nothing; method.evidence.select=false.
    Eq. 3, y_DR is "the sum of grades 1 to 4", the code's depends on the argmax -> the sum; method.evidence.score. It is
        a sum of logits, whose gradient a sure prediction does not quench; in Table V's W/O vis, which compares y_DR
        itself, it is one of probabilities, which have a scale of their own, and method.evidence.score does nothing.
    Algorithm 1 goes through "all layers" -> the outputs of the four ResNet stages, as the code.
    Algorithm 1 weighs layers by their channels' weights, the code by learned 1x1 convolutions -> Algorithm 1;
        method.evidence.fusion=learned, with stages.*.map_fit, which trains them. The code fits the high-resolution
        image's map, in stage 3 too -> there the restored one's, which the other terms are about;
        method.stages.joint.map_fit_of=high.
    Table V's W/O vis replaces the maps of Eq. 5 by scores -> so it does, and Eq. 9, which needs a map, goes with them:
        images without a mask teach segmentation nothing in that row.
    Table V's guided backprop and SmoothGrad as maps in Eq. 5: a ResNet is piecewise linear but for its batch
        statistics, so their maps pass almost no gradient to the image, and hence to super-resolution. GMSV and Grad-CAM
        do. Nothing is changed; tests/unit/test_evidence.py shows it.
    Eq. 4 is a squared norm -> the mean over planes and pixels, so that lambda does not depend on the image's size. It
        compares segmentation maps, in stage 1 of the code their logits -> maps;
        method.stages.restoration.segmentation_aware_on=logits. S has four planes, here and in the code five, with the
        background: where it differs, so does a lesion.
    Eqs. 5 and 9 threshold maps -> sigmoids, as in Eq. 2. The code does not; method.evidence.binarise=false. Its map
        leaves the device for an image library and with it the graph -> it stays, and passes a gradient. The text of
        Eq. 5 mentions a concatenation that the formula has not -> none.
    Eq. 5 of an image against itself is 0, but dropout would give the two images' maps, and Table V's scores, masks of
        their own -> both are of logits without dropout, the loss of grades is of logits behind it, from the same
        forward pass; SmoothGrad's noise is the same for both images of a step.
    Batch normalisation in training mode takes the statistics of every batch that passes -> the passes that only make a
        target or a map, of high-resolution and of noisy images, leave no trace in the running ones, by which
        prediction normalises restored images; otherwise Table V's maps would differ by this, too.
    Eq. 6 is L1, the code's MSE -> L1, mean over pixels; method.loss.pixel_norm.
    Eq. 8 divides once, over all lesions; the code does so per lesion, with weights, without the factor 2, and adds a
        focal loss -> per lesion, with the factor 2, without focal loss; method.loss.dice_per_lesion, .dice_factor and
        .focal.
    Eq. 9 subtracts one map from four -> compared with the chance of any lesion; stages.joint.semi_supervised_against.
    Eq. 10 as printed gives correct images no loss -> distance + 1; method.grading.loss.
    Eq. 11 is "for the ISR subnet" -> one backward pass: its terms reach every net of the stage that learns. What the
        terms compare with, the high-resolution image's maps, passes no gradient.
    Segmentation in stage 3 is trained with Eqs. 8 and 9, the code's is fixed -> trained; segmentation.mode=independent.
    Learning rates change at fixed epochs of stages 1 and 2 in the code; the paper does not say -> they do not, but by
        optim.schedule; method.stages.*.lr_change_epoch.
    Stage 1 takes random crops of 256 px in the code; the paper does not say -> whole images.
    Table I's networks alone are other papers' -> they have DeepMT-DR's pyramid pooling, dropout, learning rate and
        Eq. 10, so that the rows differ in what is left out; method.grading.loss=weighted is the plain cross-entropy.
    Batches are of 1 or 2 images in the code -> train.global_batch_size; the paper does not say.
"""

from retina_ray.methods.deepmt.method import build
from retina_ray.methods.deepmt.plan import plan

__all__ = ["build", "plan"]
