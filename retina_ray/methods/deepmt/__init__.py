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
    Eq. 11          losses.deepmt.super_resolution_loss  tests/papers/test_deepmt_equations.py

Deviation register (what the paper prints -> what happens here; why; switch [what shows the effect: tests, and recipes
that train it]). tests/unit/test_deepmt_switches.py flips every switch.
    Eq. 1 adds five maps, whose weights are not given; the code adds four, with 0.4, 0.2, 0.2, 1.0, and leaves out the
        one of full resolution -> 0.4, 0.2, 0.2, 0.2 and 1.0 for the full resolution, without which microaneurysms are
        lost; the code's is method.segmentation.gamma=[0.4,0.2,0.2,1,0]
        [test_segmentation_sums_the_maps_of_every_scale].
    Eq. 1's softmax is over four lesions, the code's over these and the background -> the code's, or each pixel would
        show some lesion. No switch: Eqs. 8 and 9, the focal loss and the union of the lesions are all defined by the
        background's plane [test_lesion_probabilities_are_the_softmax_without_the_background].
    Scale is 4, in the code's configurations 8 -> 4; method.scale=8 [recipe deepmt_input_512, which is 2,
        test_super_resolution_enlarges_any_size_into_the_unit_range].
    Eq. 2 thresholds features and overlaps -> sigmoids; hard thresholds pass no gradient, so xi could not learn;
        method.evidence.step=hard [test_eq_2_as_printed_learns_no_xi, test_eq_2_a_sharp_step_is_the_printed_one].
        Features are compared on the scale of their own maximum, so that one xi fits. The code selects nothing;
        method.evidence.select=false [test_gmsv_is_the_slow_form].
    Eq. 3, y_DR is "the sum of grades 1 to 4", the code's depends on the argmax -> the sum; method.evidence.score
        [test_positive_score_worked_out, test_the_score_that_is_explained_can_be_chosen]. It is a sum of logits, whose
        gradient a sure prediction does not quench; in Table V's W/O vis, which compares y_DR itself, it is one of
        probabilities, which have a scale of their own, and method.evidence.score does nothing
        [test_table_v_without_a_map_compares_the_scores].
    Algorithm 1 goes through "all layers" -> the outputs of the four ResNet stages, as the code.
    Algorithm 1 weighs layers by their channels' weights, the code by learned 1x1 convolutions -> Algorithm 1;
        method.evidence.fusion=learned, with stages.*.map_fit, which trains them [test_algorithm_1_worked_out,
        test_the_authors_fusion_worked_out].
    The map's fit is the code's alone. It fits the high-resolution image's map, in stage 3 too -> there the restored
        one's, which the other terms are about; method.stages.joint.map_fit_of=high
        [test_the_map_that_is_fitted_can_be_that_of_the_high_resolution_image]. In stage 2 it fits it to any lesion, in
        stage 3, by broadcasting, to each of the five planes -> any lesion in both, as no map is like a lesion and like
        the background; method.stages.joint.map_fit_against=planes
        [test_the_map_is_fitted_to_any_lesion_or_to_each_of_the_five_planes].
    Table V's W/O vis replaces the maps of Eq. 5 by scores -> so it does, and Eq. 9, which needs a map, goes with them:
        images without a mask teach segmentation nothing in that row [recipe deepmt_map_none].
    Table V's guided backprop and SmoothGrad as maps in Eq. 5: a ResNet is piecewise linear but for its batch
        statistics, so their maps pass almost no gradient to the image, and hence to super-resolution. GMSV and Grad-CAM
        do. Nothing is changed [recipes deepmt_map_gbp, deepmt_map_smooth_grad, deepmt_map_grad_cam,
        test_image_gradients_are_locally_constant_in_a_piecewise_linear_network].
    Eq. 4 is a squared norm -> the mean over planes and pixels, so that lambda does not depend on the image's size
        [test_eq_4_is_the_mean_square_error_of_the_segmentations]. It compares segmentation maps, in stage 1 of the code
        their logits -> maps; method.stages.restoration.segmentation_aware_on=logits. S has four planes, here and in the
        code five, with the background: where it differs, so does a lesion.
    Eqs. 5 and 9 threshold maps -> sigmoids, as in Eq. 2; method.evidence.step=hard
        [test_eq_5_as_printed_passes_no_gradient_and_the_soft_form_does, test_the_printed_threshold_passes_no_gradient].
        The code does not; method.evidence.binarise=false [test_eq_5_against_plain_python].
    Eq. 5 feeds back what grading goes by. The code's map leaves the device for an image library and with it the graph,
        so that nothing is fed back -> it stays, and passes a gradient; method.evidence.feedback=false
        [test_a_map_tells_the_nets_that_make_it_unless_it_leaves_the_graph,
        test_each_task_tells_super_resolution_s_first_layer].
    Eq. 5's text mentions a concatenation that the formula has not -> none.
    Eq. 5 of an image against itself is 0, but dropout would give the two images' maps, and Table V's scores, masks of
        their own -> both are of logits without dropout, the loss of grades is of logits behind it, from the same
        forward pass; SmoothGrad's noise is the same for all images of a step
        [test_a_perfectly_restored_image_has_no_loss_of_segmentation_or_evidence,
        test_the_loss_of_grades_is_behind_dropout].
    Batch normalisation in training mode takes the statistics of every batch that passes -> the passes that only make a
        target or a map, of high-resolution and of noisy images, leave no trace in the running ones, by which
        prediction normalises restored images; otherwise Table V's maps would differ by this, too
        [test_running_statistics_are_those_of_restored_images].
    Eq. 6 is L1, the code's MSE -> L1, mean over pixels; method.loss.pixel_norm
        [test_eq_6_is_the_mean_absolute_difference_of_the_pixels].
    Eq. 8 divides once, over all lesions; the code does so per lesion, with weights, without the factor 2, and adds a
        focal loss -> per lesion, with the factor 2, without focal loss; method.loss.dice_per_lesion, .dice_factor and
        .focal [test_eq_8_printed_hides_a_small_lesion_behind_a_large_one, test_focal_loss_against_plain_python,
        test_eq_8_without_the_factor_2_is_one_half_for_a_perfect_overlap].
    Eq. 9 subtracts one map from four -> compared with the chance of any lesion; stages.joint.semi_supervised_against
        [test_eq_9_against_each_plane_cannot_be_met_where_the_map_shows_a_lesion].
    Eq. 10 as printed gives correct images no loss -> distance + 1; method.grading.loss
        [test_eq_10_as_printed_teaches_nothing_about_images_that_are_graded_right]. The code weighs classes instead;
        method.grading.loss=weighted [test_eq_10_weighted_is_torchs_cross_entropy_with_class_weights].
    Eq. 11 is "for the ISR subnet" -> one backward pass: its terms reach every net of the stage that learns. What the
        terms compare with, the high-resolution image's maps, passes no gradient
        [test_each_stage_trains_its_nets, test_what_a_term_compares_with_passes_no_gradient].
    Segmentation in stage 3 is trained with Eqs. 8 and 9, the code's is fixed -> trained; segmentation.mode=independent
        [recipe deepmt_independent_segmentation, test_an_independent_net_stays_as_it_is_in_the_joint_stage].
    Learning rates change at fixed epochs of stages 1 and 2 in the code; the paper does not say -> they do not, but by
        optim.schedule; method.stages.*.lr_change_epoch [test_rates_change_where_the_authors_code_changes_them].
    Stage 1 takes random crops of 256 px in the code; the paper does not say -> whole images.
    Table I's networks alone are other papers' -> they have DeepMT-DR's pyramid pooling, dropout, learning rate and
        Eq. 10, so that the rows differ in what is left out; method.grading.loss=weighted is the plain cross-entropy
        [recipes deepmt_resnet18, deepmt_inception_v3, deepmt_densenet121].
    Batches are of 1 or 2 images in the code -> train.global_batch_size; the paper does not say.

What is measured (no switches: where there are several readings, each is reported under its own name)
    Kappa is "Cohen's"; the code takes the chance of agreement from the correct images alone, which inflates it, and its
        baselines' is linear and quadratic -> unweighted, linear and quadratic, all from the confusion matrix, as no
        weighting is named and they are not comparable: kappa, kappa_linear, kappa_quadratic
        [test_equals_scikit_learn].
    Precision and F1 of five grades are averaged in a way that the paper does not say, by the code weighted by the
        grades' numbers, which grade 0 then dominates -> so and as plain means: precision_weighted, precision_macro,
        f1_weighted, f1_macro [test_equals_scikit_learn, test_absent_grade_counts_in_no_average].
    AP and AUC of lesions are the code's means over the images that show the lesion; the paper does not say -> so,
        image_ap_MA, and pooled over all pixels, ap_MA, in which false alarms in images without the lesion count, too
        [test_areas_per_image_are_means_over_the_images_that_show_the_lesion].
    The map's AUC (Finding 3) is pooled over all pixels of images with a mask, where SmoothGrad's noise depends on the
        run's seed alone [test_figures_of_the_test_stage_do_not_depend_on_the_process_or_the_batches].
"""

from retina_ray.methods.deepmt.method import build
from retina_ray.methods.deepmt.plan import plan

__all__ = ["build", "plan"]
